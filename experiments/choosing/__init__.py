"""What a run chooses by itself before it begins, by short runs on records that it does not report."""
