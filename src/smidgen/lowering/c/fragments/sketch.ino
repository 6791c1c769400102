// {{title}}: prints the class of ten test images.
#include <Arduino.h>
#include <{{prefix}}.h>

#include "images.h"

@if stream
// Row by row, as from a camera: no image is kept.
static {{prefix}}_stream stream;
static uint8_t row[{{upper}}_WIDTH * {{upper}}_CHANNELS];
@else
static {{prefix}}_scratch scratch;
static uint8_t image[{{upper}}_PIXELS];
@end

void setup()
{
  Serial.begin(115200);
  while (!Serial) {
  }
  for (int n = 0; n < {{count}}; n++) {
    const unsigned long began = micros();
@if stream
    {{prefix}}_begin(&stream);
    for (int y = 0; y < {{upper}}_HEIGHT; y++) {
      memcpy_P(row, images[n] + y * sizeof row, sizeof row);
      {{prefix}}_row(&stream, row);
    }
    const int found = {{prefix}}_best({{prefix}}_end(&stream));
@else
    memcpy_P(image, images[n], sizeof image);
    const int found = {{prefix}}_classify(image, &scratch);
@end
    const unsigned long took = micros() - began;

    Serial.print(F("class "));
    Serial.print(found);
@if names
    Serial.print(F(" "));
    Serial.print({{prefix}}_names[found]);
@end
    Serial.print(F(", label "));
    Serial.print(pgm_read_byte(&labels[n]));
    Serial.print(F(", "));
    Serial.print(took);
    Serial.println(F(" us"));
  }
}

void loop()
{
}
