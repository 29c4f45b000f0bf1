"""The machine beneath: its processor, the cores that are granted, threads that share them, memory pages, forks."""
