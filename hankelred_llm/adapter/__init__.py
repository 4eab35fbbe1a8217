"""The adapter: configuration, layers, the peft method, its files, and systems in and out."""

# first of all: when peft is imported, HRM is registered, which imports every module of this folder
import peft as peft
