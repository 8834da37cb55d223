"""Makes the weather up, the same each time for a city: put a call of your weather service here."""

import argparse
import zlib

SKIES = ("sunny", "cloudy", "light rain", "fog", "snow", "clear")

parser = argparse.ArgumentParser()
parser.add_argument("--city", required=True)
number = zlib.crc32(parser.parse_args().city.casefold().encode())
print(f"{number % 30}°C, {SKIES[number % len(SKIES)]}")
