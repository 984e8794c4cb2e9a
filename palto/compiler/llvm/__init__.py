"""From loop nests to LLVM IR to machine code."""
