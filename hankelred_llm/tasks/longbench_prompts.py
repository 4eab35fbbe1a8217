"""Prompts and answer lengths of LongBench, for the tasks that are in it.

From THUDM/LongBench, ``LongBench/config/dataset2prompt.json`` and ``dataset2maxlen.json``, commit 2e00731,
MIT licence; letter by letter, "asconcisely" included.
"""

from __future__ import annotations

PROMPTS = {
    "narrativeqa": (
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the "
        "question asconcisely as you can, using a single phrase if possible. Do not provide any "
        "explanation.\n\n"
        "Story: {context}\n\n"
        "Now, answer the question based on the story asconcisely as you can, using a single phrase if "
        "possible. Do not provide any explanation.\n\n"
        "Question: {input}\n\n"
        "Answer:"
    ),
    "qmsum": (
        "You are given a meeting transcript and a query containing a question or instruction. Answer the "
        "query in one or more sentences.\n\n"
        "Transcript:\n{context}\n\n"
        "Now, answer the query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: {input}\n"
        "Answer:"
    ),
}
ANSWER_LENGTHS = {"narrativeqa": 128, "qmsum": 512}
