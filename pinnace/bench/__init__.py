"""Measure a bundle on the machine at hand: latency, throughput, memory, and how near the machine's limit they come."""
