"""What state tuning is compared with, through the same `Method` and train step."""
