"""``dspark-gguf bench``: ways of decoding side by side, as ratios to plain decoding.

plan      what is measured: prompts, temperatures, ways
ways      what is compared: names, and what each of them means
turns     one turn: every way answers the same prompt, one after the other
ours      this package's decoders as programs
peers     llama-cpp-python and llama.cpp's server as programs
results   medians and spreads, where plain decoding wins, the JSON object
text      the same for a terminal
report    the same as one HTML page
run       all of it, for the command
"""
