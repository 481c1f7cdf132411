"""Many photos in many styles: what is to be done, what is done already, and doing the rest without losing any."""

from styleapp.batch.journal import Journal, Summary, journal_of, settings_hash, summarize
from styleapp.batch.plan import JOURNAL, Estimate, Job, Photo, estimate, find_photos, find_styles, make_jobs, place
from styleapp.batch.run import run_jobs
from styleapp.batch.work import Done, Settings, Task, Worker

__all__ = [
    "JOURNAL",
    "Done",
    "Estimate",
    "Job",
    "Journal",
    "Photo",
    "Settings",
    "Summary",
    "Task",
    "Worker",
    "estimate",
    "find_photos",
    "find_styles",
    "journal_of",
    "make_jobs",
    "place",
    "run_jobs",
    "settings_hash",
    "summarize",
]
