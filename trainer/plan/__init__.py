"""What a run will cost, found out before it starts: `medalign train --plan`."""
