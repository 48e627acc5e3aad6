"""Many settings on one locked split: cells, their choice on validation, and the record of it."""
