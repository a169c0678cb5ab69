"""The composition root: class `Kensho`."""

from kensho.app.answers import AnswerRecord, GenerateOptions, Token
from kensho.app.kensho import AnswerStream, Kensho

__all__ = ["AnswerRecord", "AnswerStream", "GenerateOptions", "Kensho", "Token"]
