/* Lines, markers and text into an SVG or PNG file, by cairo. The library is loaded when a picture
 * is asked for: the tool also runs where nobody draws. One thread. */
#ifndef COMPRESS_CANVAS_H
#define COMPRESS_CANVAS_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

struct canvas;

enum line_style { LINE_SOLID, LINE_DASHED, LINE_DOTTED, LINE_DASH_DOT, N_LINE_STYLES };
enum marker {
    MARKER_DISC,
    MARKER_SQUARE,
    MARKER_TRIANGLE,
    MARKER_DIAMOND,
    MARKER_CROSS,
    N_MARKERS
};
enum anchor { ANCHOR_LEFT, ANCHOR_MIDDLE, ANCHOR_RIGHT };

/* Whether canvas_open will take the path: .svg or .png, and cairo at hand. */
err_t canvas_check(const char *path, struct why *why);
/* width, height: in points, y downwards; white. */
err_t canvas_open(struct canvas **out, const char *path, double width, double height,
                  struct why *why);
/* Writes the file; frees c in any case. */
err_t canvas_close(struct canvas *c, struct why *why);

/* rgb: 0xRRGGBB, of everything drawn from here on. */
void canvas_colour(struct canvas *c, uint32_t rgb);
/* xy: [n][2]. */
void canvas_line(struct canvas *c, const double (*xy)[2], int n, double width, enum line_style s);
void canvas_marker(struct canvas *c, enum marker m, double x, double y);
/* x, y: of the anchor on the base line. upwards: turned to read from below. */
void canvas_text(struct canvas *c, double x, double y, enum anchor a, bool upwards, double size,
                 const char *text);
double canvas_text_width(struct canvas *c, double size, const char *text);

#endif
