"""The networks: encoder, decoder, and the two joined by a norm."""

from styleapp.models.decoder import Decoder
from styleapp.models.int8 import Int8Encoder
from styleapp.models.int8_decoder import Int8Decoder
from styleapp.models.predictor import CodePredictor, ShiftPredictor
from styleapp.models.stylizer import StyleCode, Stylizer, code_from_moments, unshifted
from styleapp.models.transformer import TransformerNet
from styleapp.models.vgg import STYLE_LAYERS, Encoder

__all__ = [
    "STYLE_LAYERS",
    "CodePredictor",
    "Decoder",
    "Encoder",
    "Int8Decoder",
    "Int8Encoder",
    "ShiftPredictor",
    "StyleCode",
    "Stylizer",
    "TransformerNet",
    "code_from_moments",
    "unshifted",
]
