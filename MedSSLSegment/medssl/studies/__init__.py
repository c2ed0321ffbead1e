"""Was pre-training worth it? `study` says how; `study_runs` does one run; `study_report` writes table and plot."""
