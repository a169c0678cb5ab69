"""The composition root: class `Kensho`."""

from kensho.app.answer_stream import AnswerStream
from kensho.app.answers import AnswerRecord, GenerateOptions, Token
from kensho.app.kensho import Kensho

__all__ = ["AnswerRecord", "AnswerStream", "GenerateOptions", "Kensho", "Token"]
