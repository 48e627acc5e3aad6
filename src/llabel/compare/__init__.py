"""Every rung on one locked split: runs, statistics, verdict, and the record of it all."""
