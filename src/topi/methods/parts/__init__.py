"""What several methods are built from: schedules, pruners, stores, caches."""
