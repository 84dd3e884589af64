#include "compress/canvas.h"

#include <cairo/cairo-svg.h>
#include <cairo/cairo.h>
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#define FUNCTIONS(X)                                                                               \
    X(arc) X(close_path) X(create) X(destroy) X(fill_preserve) X(image_surface_create) X(line_to)  \
    X(move_to) X(paint) X(restore) X(rotate) X(save) X(scale) X(select_font_face) X(set_dash)      \
    X(set_font_size) X(set_line_cap) X(set_line_join) X(set_line_width) X(set_source_rgb)          \
    X(show_text) X(status) X(status_to_string) X(stroke) X(surface_destroy) X(surface_finish)      \
    X(surface_status) X(surface_write_to_png) X(svg_surface_create) X(text_extents) X(translate)
/* clang-format on */

#ifdef __SANITIZE_ADDRESS__
/* fontconfig keeps what it read of the fonts until the end, and some of it out of sight. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libfontconfig";
}
/* Nor is it said: what the tool prints stays what it prints. */
const char *__lsan_default_options(void);
const char *__lsan_default_options(void) {
    return "print_suppressions=0";
}
#endif

/* Pixels of a PNG a point: print and dense displays show it sharp. */
static const double png_scale = 3;
static const double marker_size = 3.4; /* half its width */

struct canvas {
    void *library;
    struct {
#define X(name) __typeof__(cairo_##name) *name;
        FUNCTIONS(X)
#undef X
    } f;
    cairo_surface_t *surface;
    cairo_t *to;
    char *path;
    bool is_png;
    double red, green, blue;
};

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

static err_t load(struct canvas *c, struct why *why) {
    c->library = dlopen("libcairo.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!c->library)
        return why_set(why, E_UNSUPPORTED,
                       "drawing needs the cairo library, which is not installed (Debian, Ubuntu: "
                       "apt install libcairo2)");
    bool all = true;
#define X(name)                                                                                    \
    *(void **)(void *)&c->f.name = dlsym(c->library, "cairo_" #name);                              \
    all = all && c->f.name;
    FUNCTIONS(X)
#undef X
    return all ? E_OK : why_set(why, E_UNSUPPORTED, "the installed cairo library is too old");
}

static err_t check_name(const char *path, struct why *why) {
    return ends_with(path, ".svg") || ends_with(path, ".png")
               ? E_OK
               : why_set(why, E_USAGE, "a plot is FILE.svg or FILE.png, not \"%.128s\"", path);
}

static void release(struct canvas *c) {
    if (c->to)
        c->f.destroy(c->to);
    if (c->surface)
        c->f.surface_destroy(c->surface);
    /* The library stays: its font cache does not survive being unloaded. */
    free(c->path);
    free(c);
}

err_t canvas_check(const char *path, struct why *why) {
    struct canvas c = {0};
    err_t e = check_name(path, why);
    return e ? e : load(&c, why);
}

err_t canvas_open(struct canvas **out, const char *path, double width, double height,
                  struct why *why) {
    *out = NULL;
    struct canvas *c = calloc(1, sizeof *c);
    err_t e = check_name(path, why);
    if (!c)
        return why_set(why, E_NOMEM, "%s: not enough memory to draw it", path);
    e = e ? e : load(c, why);
    if (!e && !(c->path = strdup(path)))
        e = why_set(why, E_NOMEM, "%s: not enough memory to draw it", path);
    if (!e) {
        c->is_png = ends_with(path, ".png");
        c->surface = c->is_png ? c->f.image_surface_create(CAIRO_FORMAT_RGB24,
                                                           (int)lround(width * png_scale),
                                                           (int)lround(height * png_scale))
                               : c->f.svg_surface_create(path, width, height);
        c->to = c->f.create(c->surface);
        if (c->is_png)
            c->f.scale(c->to, png_scale, png_scale);
        c->f.select_font_face(c->to, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                              CAIRO_FONT_WEIGHT_NORMAL);
        c->f.set_line_join(c->to, CAIRO_LINE_JOIN_ROUND);
        c->f.set_source_rgb(c->to, 1, 1, 1);
        c->f.paint(c->to);
        canvas_colour(c, 0);
        *out = c;
        return E_OK;
    }
    release(c);
    return e;
}

err_t canvas_close(struct canvas *c, struct why *why) {
    cairo_status_t s = c->f.status(c->to);
    if (!s && c->is_png)
        s = c->f.surface_write_to_png(c->surface, c->path);
    c->f.surface_finish(c->surface);
    if (!s)
        s = c->f.surface_status(c->surface);
    err_t e =
        s ? why_set(why, E_IO, "%s: cannot draw it: %s", c->path, c->f.status_to_string(s)) : E_OK;
    release(c);
    return e;
}

void canvas_colour(struct canvas *c, uint32_t rgb) {
    c->red = (rgb >> 16 & 255) / 255.0, c->green = (rgb >> 8 & 255) / 255.0;
    c->blue = (rgb & 255) / 255.0;
    c->f.set_source_rgb(c->to, c->red, c->green, c->blue);
}

void canvas_line(struct canvas *c, const double (*xy)[2], int n, double width, enum line_style s) {
    static const struct {
        int n;
        double length[4];
    } dash[N_LINE_STYLES] = {{0}, {2, {5, 3}}, {2, {0.1, 2.6}}, {4, {6, 2.6, 0.1, 2.6}}};
    c->f.set_line_width(c->to, width);
    c->f.set_dash(c->to, dash[s].length, dash[s].n, 0);
    c->f.set_line_cap(c->to, s == LINE_DOTTED || s == LINE_DASH_DOT ? CAIRO_LINE_CAP_ROUND
                                                                    : CAIRO_LINE_CAP_BUTT);
    for (int i = 0; i < n; i++)
        (i ? c->f.line_to : c->f.move_to)(c->to, xy[i][0], xy[i][1]);
    c->f.stroke(c->to);
}

/* Filled and hollow ones in turn, so that they differ without colour. */
void canvas_marker(struct canvas *c, enum marker m, double x, double y) {
    static const double corner[N_MARKERS][4][2] = {
        [MARKER_SQUARE] = {{-1, -1}, {1, -1}, {1, 1}, {-1, 1}},
        [MARKER_TRIANGLE] = {{0, -1.2}, {1.1, 0.9}, {-1.1, 0.9}, {0, -1.2}},
        [MARKER_DIAMOND] = {{0, -1.4}, {1.4, 0}, {0, 1.4}, {-1.4, 0}},
        [MARKER_CROSS] = {{-1, -1}, {1, 1}, {-1, 1}, {1, -1}},
    };
    c->f.set_line_width(c->to, 1.4);
    c->f.set_dash(c->to, NULL, 0, 0);
    if (m == MARKER_DISC)
        c->f.arc(c->to, x, y, marker_size, 0, 2 * M_PI);
    for (int i = 0; m != MARKER_DISC && i < 4; i++) {
        bool begin = i == 0 || (m == MARKER_CROSS && i == 2);
        (begin ? c->f.move_to : c->f.line_to)(c->to, x + marker_size * corner[m][i][0],
                                              y + marker_size * corner[m][i][1]);
    }
    if (m != MARKER_CROSS && m != MARKER_DISC)
        c->f.close_path(c->to);
    if (m == MARKER_SQUARE || m == MARKER_DIAMOND) {
        c->f.set_source_rgb(c->to, 1, 1, 1);
        c->f.fill_preserve(c->to);
        c->f.set_source_rgb(c->to, c->red, c->green, c->blue);
    } else if (m != MARKER_CROSS) {
        c->f.fill_preserve(c->to);
    }
    c->f.stroke(c->to);
}

double canvas_text_width(struct canvas *c, double size, const char *text) {
    cairo_text_extents_t box;
    c->f.set_font_size(c->to, size);
    c->f.text_extents(c->to, text, &box);
    return box.x_advance;
}

void canvas_text(struct canvas *c, double x, double y, enum anchor a, bool upwards, double size,
                 const char *text) {
    double back = canvas_text_width(c, size, text) * (a == ANCHOR_LEFT     ? 0
                                                      : a == ANCHOR_MIDDLE ? 0.5
                                                                           : 1);
    c->f.save(c->to);
    c->f.translate(c->to, x, y);
    if (upwards)
        c->f.rotate(c->to, -M_PI / 2);
    c->f.move_to(c->to, -back, 0);
    c->f.show_text(c->to, text);
    c->f.restore(c->to);
}
