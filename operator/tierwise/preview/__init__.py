"""What a change would do, before it is applied (`tierwise plan`), and what was decided and why (`tierwise explain`)."""
