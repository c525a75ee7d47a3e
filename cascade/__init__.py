"""The science: tensors in, tensors out. No files, no Prefect."""
