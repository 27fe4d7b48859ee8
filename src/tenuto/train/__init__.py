"""Small trainings, seeded and resumable."""
