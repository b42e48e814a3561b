"""One small but working variant of every role."""
