"""`python -m vlm2rec`, and so `accelerate launch -m vlm2rec`."""

from vlm2rec.cli import main

main()
