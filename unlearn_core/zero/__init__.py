"""DeepSpeed ZeRO behind one engine. The only folder that imports `deepspeed`."""
