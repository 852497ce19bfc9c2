"""What the papers print: their numbers as data, a reader, and the comparison with a report."""
