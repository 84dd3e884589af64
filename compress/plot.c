#include "compress/plot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/canvas.h"

enum { MAX_PANELS = 3, MAX_SERIES = 12, MAX_TICKS = 16 };
enum { INK = 0x1a1a1a, FAINT = 0xd9d9d9, GREY = 0x555555 };

/* In points. */
static const double panel_width = 230, panel_height = 200, left = 58, right = 14, top = 44,
                    below = 44, legend_line = 16, text_size = 10, title_size = 11.5;
/* Colours that people with any colour vision tell apart (after Okabe and Ito), dark on white. */
static const uint32_t colours[] = {0x0072b2, 0xd55e00, 0x007a5a, 0x8a4f7d, 0x1a1a1a, 0x7a6a00};
enum { N_COLOURS = sizeof colours / sizeof *colours };

static const struct {
    const char *label;
    bool log, percent;
} metrics[N_PLOT_METRICS] = {
    [PLOT_EXACT] = {"exact match, %", false, true},
    [PLOT_KL] = {"KL from the fine-tune, nats per token", true, false},
    [PLOT_TOP1] = {"same most likely token, %", false, true},
    [PLOT_PERPLEXITY] = {"perplexity", true, false},
};

struct axis {
    double lo, hi; /* of the values; of their logarithms when log */
    bool log;
    double tick[MAX_TICKS]; /* values */
    int n_ticks;
};

struct chart {
    const struct plot *p;
    struct canvas *c;
    const char *series[MAX_SERIES];
    int n_series;
    struct axis x;
};

/* ---- axes ------------------------------------------------------------------------------------ */

static double place_of(const struct axis *a, double v) {
    double t = ((a->log ? log10(v) : v) - a->lo) / (a->hi - a->lo);
    return t < 0 ? 0 : t > 1 ? 1 : t; /* an exact tenant's KL is 0: at the edge */
}

/* About five steps of 1, 2 or 5 times a power of ten. */
static void linear_ticks(struct axis *a) {
    double rough = (a->hi - a->lo) / 5, power = pow(10, floor(log10(rough))), step = 10 * power;
    for (int i = 2; i >= 0; i--)
        step = rough <= (double[]){1, 2, 5}[i] * power ? (double[]){1, 2, 5}[i] * power : step;
    for (double v = ceil(a->lo / step - 1e-9) * step;
         v <= a->hi + 1e-9 * step && a->n_ticks < MAX_TICKS; v += step)
        a->tick[a->n_ticks++] = fabs(v) < 1e-9 * step ? 0 : v;
}

static void log_ticks(struct axis *a) {
    double decades = a->hi - a->lo;
    for (double d = floor(a->lo); d <= a->hi; d += decades > 6 ? 2 : 1)
        for (int i = 0; i < 3; i++) {
            double v = (double[]){1, 2, 5}[i] * pow(10, d), l = log10(v);
            if (l >= a->lo - 1e-9 && l <= a->hi + 1e-9 && (i == 0 || decades < 2.2) &&
                a->n_ticks < MAX_TICKS)
                a->tick[a->n_ticks++] = v;
        }
}

static void widen(double *lo, double *hi, double v, bool log) {
    if (!isfinite(v) || (log && v <= 0))
        return;
    v = log ? log10(v) : v;
    *lo = v < *lo ? v : *lo;
    *hi = v > *hi ? v : *hi;
}

static struct axis y_axis(const struct plot *p, enum plot_metric m) {
    struct axis a = {.lo = INFINITY, .hi = -INFINITY, .log = metrics[m].log};
    widen(&a.lo, &a.hi, p->base[m], a.log);
    widen(&a.lo, &a.hi, p->fine_tune[m], a.log);
    for (int i = 0; i < p->n_points; i++)
        widen(&a.lo, &a.hi, p->point[i].value[m], a.log);
    if (!(a.lo <= a.hi)) /* all exact */
        a.lo = -3, a.hi = 0;
    double margin = a.hi - a.lo > 1e-9 ? 0.07 * (a.hi - a.lo) : a.log ? 0.2 : 1;
    a.lo -= margin, a.hi += margin;
    if (metrics[m].percent) {
        a.lo = a.lo < 0 ? 0 : a.lo;
        a.hi = a.hi > 100 ? 100 : a.hi;
    }
    if (a.log)
        log_ticks(&a);
    else
        linear_ticks(&a);
    return a;
}

static struct axis x_axis(const struct plot *p) {
    struct axis a = {.lo = INFINITY, .hi = -INFINITY};
    for (int i = 0; i < p->n_points; i++)
        widen(&a.lo, &a.hi, p->point[i].bits, false);
    double span = a.hi - a.lo, margin = span > 0.1 ? 0.08 * span : 0.25;
    a.lo = a.lo - margin > 0 ? a.lo - margin : 0;
    a.hi += margin;
    linear_ticks(&a);
    return a;
}

/* ---- panels ---------------------------------------------------------------------------------- */

struct panel {
    double x, y; /* its lower left corner */
    enum plot_metric metric;
    struct axis axis;
};

static double to_x(const struct chart *c, const struct panel *q, double bits) {
    return q->x + panel_width * place_of(&c->x, bits);
}

static double to_y(const struct panel *q, double v) {
    return q->y - panel_height * place_of(&q->axis, v);
}

static void draw_frame(struct chart *c, const struct panel *q) {
    char text[32];
    for (int i = 0; i < q->axis.n_ticks; i++) {
        double y = to_y(q, q->axis.tick[i]);
        canvas_colour(c->c, FAINT);
        canvas_line(c->c, (double[][2]){{q->x, y}, {q->x + panel_width, y}}, 2, 0.6, LINE_SOLID);
        canvas_colour(c->c, INK);
        snprintf(text, sizeof text, "%.6g", q->axis.tick[i]);
        canvas_text(c->c, q->x - 5, y + 3.5, ANCHOR_RIGHT, false, text_size, text);
    }
    canvas_colour(c->c, INK);
    for (int i = 0; i < c->x.n_ticks; i++) {
        double x = to_x(c, q, c->x.tick[i]);
        canvas_line(c->c, (double[][2]){{x, q->y}, {x, q->y + 4}}, 2, 0.8, LINE_SOLID);
        snprintf(text, sizeof text, "%.6g", c->x.tick[i]);
        canvas_text(c->c, x, q->y + 15, ANCHOR_MIDDLE, false, text_size, text);
    }
    canvas_line(
        c->c, (double[][2]){{q->x, q->y - panel_height}, {q->x, q->y}, {q->x + panel_width, q->y}},
        3, 0.8, LINE_SOLID);
    canvas_text(c->c, q->x + panel_width / 2, q->y + 31, ANCHOR_MIDDLE, false, text_size,
                "bits per weight, scales included");
    canvas_text(c->c, q->x - 44, q->y - panel_height / 2, ANCHOR_MIDDLE, true, text_size,
                metrics[q->metric].label);
}

/* A line with its name above it, or below where the panel or the other line is near. The name
 * stands at the end from which the tenants' points go away as their bits grow. */
static void draw_reference(struct chart *c, const struct panel *q, double v, double other,
                           const char *name, enum line_style style, enum anchor at) {
    if (!isfinite(v) || (q->axis.log && v <= 0))
        return;
    double y = to_y(q, v), gap = isfinite(other) ? y - to_y(q, other) : 99;
    bool under = y - (q->y - panel_height) < 13 || (gap >= 0 && gap < 13);
    if (q->y - y < 13)
        under = false;
    canvas_colour(c->c, GREY);
    canvas_line(c->c, (double[][2]){{q->x, y}, {q->x + panel_width, y}}, 2, 1, style);
    canvas_text(c->c, at == ANCHOR_LEFT ? q->x + 4 : q->x + panel_width - 3, under ? y + 11 : y - 4,
                at, false, text_size - 1, name);
}

static void draw_series(struct chart *c, const struct panel *q, int series) {
    const struct plot *p = c->p;
    double(*xy)[2] = malloc((size_t)(p->n_points + 1) * sizeof *xy);
    int n = 0;
    for (int i = 0; xy && i < p->n_points; i++)
        if (strcmp(p->point[i].series, c->series[series]) == 0 &&
            isfinite(p->point[i].value[q->metric])) {
            xy[n][0] = to_x(c, q, p->point[i].bits);
            xy[n++][1] = to_y(q, p->point[i].value[q->metric]);
        }
    canvas_colour(c->c, colours[series % N_COLOURS]);
    if (n > 1)
        canvas_line(c->c, (const double(*)[2])xy, n, 1.2,
                    (enum line_style)(series % N_LINE_STYLES));
    for (int i = 0; i < n; i++)
        canvas_marker(c->c, (enum marker)(series % N_MARKERS), xy[i][0], xy[i][1]);
    free(xy);
}

static void draw_panel(struct chart *c, struct panel *q) {
    const struct plot *p = c->p;
    enum plot_metric m = q->metric;
    q->axis = y_axis(p, m);
    draw_frame(c, q);
    draw_reference(c, q, p->fine_tune[m], p->base[m], "fine-tune", LINE_DASHED, ANCHOR_LEFT);
    draw_reference(c, q, p->base[m], p->fine_tune[m], "base", LINE_DOTTED, ANCHOR_RIGHT);
    for (int s = 0; s < c->n_series; s++)
        draw_series(c, q, s);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int by_bits(const void *a, const void *b) {
    const struct plot_point *x = a, *y = b;
    return (x->bits > y->bits) - (x->bits < y->bits);
}

static void find_series(struct chart *c) {
    for (int i = 0; i < c->p->n_points; i++) {
        int s = 0;
        while (s < c->n_series && strcmp(c->series[s], c->p->point[i].series) != 0)
            s++;
        if (s == c->n_series && s < MAX_SERIES)
            c->series[c->n_series++] = c->p->point[i].series;
    }
}

static void draw_legend(struct chart *c, double x, double y) {
    for (int s = 0; s < c->n_series; s++, y += legend_line) {
        canvas_colour(c->c, colours[s % N_COLOURS]);
        canvas_line(c->c, (double[][2]){{x, y}, {x + 30, y}}, 2, 1.2,
                    (enum line_style)(s % N_LINE_STYLES));
        canvas_marker(c->c, (enum marker)(s % N_MARKERS), x + 15, y);
        canvas_colour(c->c, INK);
        canvas_text(c->c, x + 38, y + 3.5, ANCHOR_LEFT, false, text_size, c->series[s]);
    }
}

static bool is_measured(const struct plot *p, enum plot_metric m) {
    for (int i = 0; i < p->n_points; i++)
        if (isfinite(p->point[i].value[m]))
            return true;
    return false;
}

err_t plot_write(const char *path, const struct plot *p, struct why *why) {
    struct chart c = {.p = p};
    enum plot_metric shown[MAX_PANELS];
    int n = 0;
    qsort(p->point, (size_t)p->n_points, sizeof *p->point, by_bits);
    find_series(&c);
    c.x = x_axis(p);
    for (int m = 0; m < N_PLOT_METRICS && n < MAX_PANELS; m++)
        if (is_measured(p, (enum plot_metric)m))
            shown[n++] = (enum plot_metric)m;
    double panel = left + panel_width + right, foot = top + panel_height + below;
    err_t e = canvas_open(&c.c, path, n * panel, foot + legend_line * c.n_series + 6, why);
    if (e)
        return e;
    canvas_text(c.c, n * panel / 2, 22, ANCHOR_MIDDLE, false, title_size, p->title);
    for (int i = 0; i < n; i++) {
        struct panel q = {.x = i * panel + left, .y = top + panel_height, .metric = shown[i]};
        draw_panel(&c, &q);
    }
    draw_legend(&c, left, foot + legend_line / 2);
    return canvas_close(c.c, why);
}
