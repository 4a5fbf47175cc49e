"""Model families: what a checkpoint is (torch-free) and how it is computed (engine process only)."""
