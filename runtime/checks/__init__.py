"""What a person runs to know that all is well: verify, inspect, doctor."""
