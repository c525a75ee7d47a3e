"""Generated inspection photographs with exact defect masks."""
