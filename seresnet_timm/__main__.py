"""`python -m seresnet_timm`, the same as `seresnet-timm`."""
from seresnet_timm.cli.main import main

if __name__ == '__main__':
    main()
