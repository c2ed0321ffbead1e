"""Training jobs that outlive the program that started them.

run_folder   a run on disk: settings, log, state, status
detached     start, stop and resume a run in a process of its own
estimating   what a run would cost, measured in a process of its own
processes    is that process still the same one
"""
