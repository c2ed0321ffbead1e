"""Teaching the small default tracker: `training` is the loop, `lessons` what a step teaches, `data` what with."""
