"""Runs plans: tensors are made of plain data here, and plain data of tensors."""
