"""``dspark-gguf bench``: methods of decoding side by side, as ratios to plain decoding."""
