"""One evaluation of an experiment, from its images to its folder."""
