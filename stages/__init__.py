"""The work: models and mathematics. Never imports Ray; a stage is handed an executor."""
