"""Making the deciders better: tasks, rewards, rollouts, GRPO, SFT and evolution."""
