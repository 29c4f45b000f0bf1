"""From a checkpoint to a verified bundle: trace, lower, bind weights, validate, publish."""
