"""Latent codecs: real bytes in the place of latents, each row a message of its own.

    messages = Adaptive(step=0.25).encode(latents, seeds)    # one bytes object a row
    latents = decode(messages)                               # from the bytes alone
    latents = Adaptive(step=0.25).quantise(latents, seeds)   # the same latents, without making the bytes

`Message.open(data)` tells what a message holds: codec, shape, dtype, payload and header bytes.

Raw              16-bit floats
DecimalRounding  the published first version: round(a x) / a
MinMax           the published second version: 2^bits levels between the extremes of a row
Adaptive         ours: what the seed does not tell, transformed, range-coded
RowCodec         the base of these and of a codec of your own
"""

from .codec import Codec, RowCodec, decode, encode, parse, quantise
from .entropy import empirical_entropy
from .message import Message
from .quantisers import Adaptive, DecimalRounding, MinMax, Raw

__all__ = [
    "Adaptive",
    "Codec",
    "DecimalRounding",
    "Message",
    "MinMax",
    "Raw",
    "RowCodec",
    "decode",
    "empirical_entropy",
    "encode",
    "parse",
    "quantise",
]
