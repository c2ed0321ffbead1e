"""Folders of CTs as data to learn from: found, prepared once, kept compressed, drawn by index.

input_contract   what a network takes: grid, window, size
grid             volumes onto that grid and masks back from it
sources          the volumes below a folder, whatever their format
packed           arrays compressed in a file, read in parts
volume_cache     prepared volumes, named by content and preparation
data             unlabelled volumes: what pre-training sees
presence         which slices of a scan show an organ
labelled         volumes with labels, some of them partly vouched for
"""
