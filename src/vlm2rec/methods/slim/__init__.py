"""SLIM and SLIM+ (WWW 2024): `method` ties it together; teachers, prompts, kept answers, distillation, Task 2."""
