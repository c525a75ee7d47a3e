"""CLIP and the methods that turn it into an anomaly map."""
