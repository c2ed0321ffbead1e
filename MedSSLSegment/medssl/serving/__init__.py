"""What the worker does with a request.

engine         models, volumes and the requests that need them
trained        requests of trained models: predict, segment, suggest
filing         requests of folders: cases, runs, models
facts          those as plain facts for display
volume_store   volumes, each received once
"""
