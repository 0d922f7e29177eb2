"""What differs between vision-language models, as data: one file a kind of family.

Holds which processor arguments a token budget becomes, which layers get LoRA, what stays unquantised. May
import config and what lies below. Begin with `table`, then `family`.
"""
