"""The three stages, written once for any decoder: plan, expand, conclude."""
