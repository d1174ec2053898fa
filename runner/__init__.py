"""runner: short real training steps under DeepSpeed, measured. Imports torch and deepspeed in its child only."""
