"""The state in a forward pass: padding and segments, the cache, sequences sharded over processes."""

# first of all: when peft is imported, HRM is registered, which imports every module of this folder
import peft as peft
