"""The Qt side of the MedSSLSegment module: panel, parameter node, and the worker's Python."""
