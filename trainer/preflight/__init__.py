"""What would fail or cost too much, before anything is spent: doctor and train --plan."""
