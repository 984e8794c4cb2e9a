"""Labels from people: challenges as reCAPTCHA showed them, and what many answers say together."""

from palto.label.aggregate import NAMED, Answers, Consensus, dawid_skene, majority_vote

__all__ = ["NAMED", "Answers", "Consensus", "dawid_skene", "majority_vote"]
