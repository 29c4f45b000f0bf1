"""How good and how fast a variant is: answers beside labels or fp32's, and interleaved runs."""
