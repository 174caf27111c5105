/* JPEG → crop → resize → one slot of a batch, without the GIL and without a copy of the whole image.
 *
 * libjpeg-turbo decodes only the rows and block columns that a crop needs (all of it scaled by its own DCT where that
 * is allowed), and each row is reduced to the output's width while it is still in the processor's cache. The filter is
 * Pillow's antialiased bilinear one: the same weights, rounded to 14 bits, columns first, a byte in between.
 *
 *   coded data ──► rows of the crop, RGBX ──shrink_rows─► ring of rows, S·3 bytes ──blend_rows──► slot, row by row
 *
 * It decodes what it is sure of: upright JPEG files in gray, YCbCr or RGB of the stated size. Of everything else, and of
 * files that end early, it says so, and the caller asks Pillow. It knows neither tars nor batches.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#ifndef JCS_EXTENSIONS
#error "libjpeg-turbo is needed: this libjpeg has no RGBX output"
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_AVX2_PATH 1
#endif

#define WEIGHT_BITS 14
#define SLACK 64 /* bytes behind a row that vector loads may touch */
#define FILTER_SHARE 2 /* a scaled decode keeps at least this many times the output's resolution */

enum { DECODED = 0, ASK_PILLOW = 1 };

/* -- filter ---------------------------------------------------------------------------------------------------------- */

/* For each of n output places the first input place, the number of taps (even: the last may weigh 0), and the weights. */
typedef struct {
    int taps_max; /* room per place in `weights`, even */
    int *first;
    int *taps;
    int16_t *weights;
    size_t room; /* places · taps allocated in `weights` */
    int places;
    int low, high; /* input places that are used: low … high − 1 */
} Filter;

static int filter_init(Filter *filter, int places)
{
    memset(filter, 0, sizeof *filter);
    filter->places = places;
    filter->first = malloc((size_t)places * sizeof(int));
    filter->taps = malloc((size_t)places * sizeof(int));
    return filter->first && filter->taps;
}

static void filter_free(Filter *filter)
{
    free(filter->first);
    free(filter->taps);
    free(filter->weights);
}

/* Weights of Pillow's BILINEAR for `places` outputs over the inputs start … stop of `size`; 0 where memory is short. */
static int filter_set(Filter *filter, int size, double start, double stop, int mirrored)
{
    double scale = (stop - start) / filter->places;
    double support = scale < 1.0 ? 1.0 : scale;
    double slope = 1.0 / support;
    int taps_max = ((int)ceil(support) * 2 + 2) & ~1;
    size_t wanted = (size_t)taps_max * (size_t)filter->places;
    if (wanted > filter->room) {
        int16_t *grown = realloc(filter->weights, wanted * sizeof(int16_t));
        if (!grown)
            return 0;
        filter->weights = grown;
        filter->room = wanted;
    }
    filter->taps_max = taps_max;
    filter->low = size;
    filter->high = 0;
    for (int place = 0; place < filter->places; place++) {
        int at = mirrored ? filter->places - 1 - place : place;
        int16_t *weights = filter->weights + (size_t)at * (size_t)taps_max;
        double center = start + (place + 0.5) * scale, sum = 0.0;
        int low = (int)(center - support + 0.5), high = (int)(center + support + 0.5);
        if (low < 0)
            low = 0;
        if (high > size)
            high = size;
        for (int tap = low; tap < high; tap++) {
            double distance = fabs(tap - center + 0.5) * slope;
            sum += distance < 1.0 ? 1.0 - distance : 0.0;
        }
        /* Rounded so that what has been given out is right at every tap: the weights add up, an even surface stays even. */
        double unit = sum != 0.0 ? (1 << WEIGHT_BITS) / sum : 0.0, exact = 0.5;
        int given = 0, n = high - low;
        for (int tap = 0; tap < n; tap++) {
            double distance = fabs(low + tap - center + 0.5) * slope;
            exact += distance < 1.0 ? (1.0 - distance) * unit : 0.0;
            weights[tap] = (int16_t)((int)exact - given);
            given = (int)exact;
        }
        if (n & 1)
            weights[n++] = 0;
        filter->first[at] = low;
        filter->taps[at] = n;
        if (low < filter->low)
            filter->low = low;
        if (high > filter->high)
            filter->high = high;
    }
    return filter->high > filter->low;
}

/* One RGBX row, whose first pixel is the image's column `column`, → places · 3 bytes (and one more is written). */
static void shrink_row_c(const Filter *filter, const uint8_t *row, int column, uint8_t *out)
{
    for (int place = 0; place < filter->places; place++, out += 3) {
        const int16_t *weights = filter->weights + (size_t)place * (size_t)filter->taps_max;
        const uint8_t *pixel = row + 4 * (size_t)(filter->first[place] - column);
        int32_t r = 1 << (WEIGHT_BITS - 1), g = r, b = r;
        for (int tap = 0; tap < filter->taps[place]; tap++, pixel += 4) {
            r += weights[tap] * pixel[0];
            g += weights[tap] * pixel[1];
            b += weights[tap] * pixel[2];
        }
        out[0] = (uint8_t)(r >> WEIGHT_BITS);
        out[1] = (uint8_t)(g >> WEIGHT_BITS);
        out[2] = (uint8_t)(b >> WEIGHT_BITS);
    }
}

/* Weighted sum of n rows of `bytes` bytes. */
static void blend_rows_c(const uint8_t *const *rows, const int16_t *weights, int n, uint8_t *out, int bytes, int start)
{
    for (int x = start; x < bytes; x++) {
        int32_t sum = 1 << (WEIGHT_BITS - 1);
        for (int tap = 0; tap < n; tap++)
            sum += weights[tap] * rows[tap][x];
        out[x] = (uint8_t)(sum >> WEIGHT_BITS);
    }
}

#ifdef HAVE_AVX2_PATH
/* Two rows at a time, one in each half of a vector. */
__attribute__((target("avx2"))) static void shrink_rows_avx2(const Filter *filter, uint8_t *const rows[2], int column,
                                                             uint8_t *const outs[2])
{
    /* two pixels RGBX RGBX → pairs R0R1 G0G1 B0B1 of 16 bits, as madd wants them */
    const __m256i pairs = _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1, /* */
                                           0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1);
    const __m256i half = _mm256_set1_epi32(1 << (WEIGHT_BITS - 1));
    uint8_t *out = outs[0], *other_out = outs[1];
    for (int place = 0; place < filter->places; place++, out += 3, other_out += 3) {
        const int16_t *weights = filter->weights + (size_t)place * (size_t)filter->taps_max;
        size_t offset = 4 * (size_t)(filter->first[place] - column);
        const uint8_t *pixel = rows[0] + offset, *other = rows[1] + offset;
        __m256i sum = half;
        for (int tap = 0; tap < filter->taps[place]; tap += 2, pixel += 8, other += 8) {
            int32_t both;
            memcpy(&both, weights + tap, sizeof both);
            __m256i two = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)pixel));
            two = _mm256_inserti128_si256(two, _mm_loadl_epi64((const __m128i *)other), 1);
            two = _mm256_madd_epi16(_mm256_shuffle_epi8(two, pairs), _mm256_set1_epi32(both));
            sum = _mm256_add_epi32(sum, two);
        }
        sum = _mm256_srai_epi32(sum, WEIGHT_BITS);
        sum = _mm256_packs_epi32(sum, sum);
        sum = _mm256_packus_epi16(sum, sum);
        int32_t rgbx = _mm256_cvtsi256_si32(sum), other_rgbx = _mm256_extract_epi32(sum, 4);
        memcpy(out, &rgbx, 4); /* the fourth byte is the next place's first, written after this */
        memcpy(other_out, &other_rgbx, 4);
    }
}

__attribute__((target("avx2"))) static void blend_rows_avx2(const uint8_t *const *rows, const int16_t *weights, int n,
                                                            uint8_t *out, int bytes)
{
    const __m256i half = _mm256_set1_epi32(1 << (WEIGHT_BITS - 1));
    int x = 0;
    for (; x + 16 <= bytes; x += 16) {
        __m256i low = half, high = half;
        for (int tap = 0; tap < n; tap += 2) {
            int32_t both;
            memcpy(&both, weights + tap, sizeof both);
            __m256i pair = _mm256_set1_epi32(both);
            __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(rows[tap] + x)));
            __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(rows[tap + 1] + x)));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
        }
        __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(low, WEIGHT_BITS), _mm256_srai_epi32(high, WEIGHT_BITS));
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
        _mm_storeu_si128((__m128i *)(out + x), _mm256_castsi256_si128(packed));
    }
    blend_rows_c(rows, weights, n, out, bytes, x);
}
#endif

static int use_avx2; /* set when the module is loaded */

static int has_avx2(void)
{
#ifdef HAVE_AVX2_PATH
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
#else
    return 0;
#endif
}

static void shrink_rows(const Filter *filter, uint8_t *const rows[2], int column, uint8_t *const outs[2])
{
#ifdef HAVE_AVX2_PATH
    if (use_avx2) {
        shrink_rows_avx2(filter, rows, column, outs);
        return;
    }
#endif
    shrink_row_c(filter, rows[0], column, outs[0]);
    shrink_row_c(filter, rows[1], column, outs[1]);
}

static void blend_rows(const uint8_t *const *rows, const int16_t *weights, int n, uint8_t *out, int bytes)
{
#ifdef HAVE_AVX2_PATH
    if (use_avx2) {
        blend_rows_avx2(rows, weights, n, out, bytes);
        return;
    }
#endif
    blend_rows_c(rows, weights, n, out, bytes, 0);
}

/* -- decoder --------------------------------------------------------------------------------------------------------- */

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg hands this back */
    jmp_buf out;
    int ended_early;
} Errors;

/* What a call keeps from image to image. */
typedef struct {
    struct jpeg_decompress_struct jpeg;
    Errors errors;
    int size_px;
    Filter columns, rows;
    uint8_t *lines; /* two decoded rows, RGBX */
    size_t lines_room;
    uint8_t *ring; /* rows of size_px · 3 bytes, stride apart */
    size_t ring_room;
    const uint8_t **taps; /* pointers into the ring */
    size_t taps_room;
} Worker;

static void on_error(j_common_ptr jpeg)
{
    longjmp(((Errors *)jpeg->err)->out, 1);
}

/* A file that ends early is a matter for Pillow, which refuses it; other warnings it passes over, and so do we. */
static void on_message(j_common_ptr jpeg, int level)
{
    Errors *errors = (Errors *)jpeg->err;
    if (level < 0) {
        errors->base.num_warnings++;
        if (errors->base.msg_code == JWRN_JPEG_EOF) {
            errors->ended_early = 1;
            longjmp(errors->out, 1);
        }
    }
}

static int worker_init(Worker *worker, int size_px)
{
    memset(worker, 0, sizeof *worker);
    worker->size_px = size_px;
    worker->jpeg.err = jpeg_std_error(&worker->errors.base);
    worker->errors.base.error_exit = on_error;
    worker->errors.base.emit_message = on_message;
    return filter_init(&worker->columns, size_px) && filter_init(&worker->rows, size_px);
}

static void worker_free(Worker *worker)
{
    filter_free(&worker->columns);
    filter_free(&worker->rows);
    free(worker->lines);
    free(worker->ring);
    free(worker->taps);
}

static int grow(void **block, size_t *room, size_t wanted)
{
    if (wanted <= *room)
        return 1;
    free(*block);
    *block = malloc(wanted);
    *room = *block ? wanted : 0;
    return *block != NULL;
}

static unsigned read_number(const uint8_t *at, int bytes, int big_endian)
{
    unsigned number = 0;
    for (int i = 0; i < bytes; i++)
        number = number << 8 | at[big_endian ? i : bytes - 1 - i];
    return number;
}

/* Whether EXIF or XMP may want the picture turned. In doubt it does: then Pillow looks. */
static int may_be_turned(const struct jpeg_decompress_struct *jpeg)
{
    static const char xmp[] = "http://ns.adobe.com/xap/1.0/";
    for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next) {
        const uint8_t *data = marker->data;
        size_t length = marker->data_length;
        if (length >= sizeof xmp && !memcmp(data, xmp, sizeof xmp))
            return 1;
        if (length < 14 || memcmp(data, "Exif\0\0", 6))
            continue;
        data += 6, length -= 6;
        int big_endian = data[0] == 'M';
        size_t directory = read_number(data + 4, 4, big_endian);
        if (directory + 2 > length)
            return 1;
        unsigned entries = read_number(data + directory, 2, big_endian);
        if (directory + 2 + (size_t)entries * 12 > length)
            return 1;
        for (unsigned i = 0; i < entries; i++) {
            const uint8_t *entry = data + directory + 2 + (size_t)i * 12;
            if (read_number(entry, 2, big_endian) == 0x0112 && read_number(entry + 8, 2, big_endian) != 1)
                return 1;
        }
    }
    return 0;
}

static int scale_for(double width, double height, double region_width, double region_height, int size_px)
{
    double across = floor(width / ceil(width * FILTER_SHARE * size_px / region_width));
    double down = floor(height / ceil(height * FILTER_SHARE * size_px / region_height));
    double least = across < down ? across : down;
    return least >= 8 ? 8 : least >= 4 ? 4 : least >= 2 ? 2 : 1;
}

static int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* The rows of the crop, each shrunk to the output's width, blended into `out` as soon as all that it needs is there. */
static int resize_rows(Worker *worker, int column, int columns, uint8_t *out)
{
    struct jpeg_decompress_struct *jpeg = &worker->jpeg;
    const Filter *rows = &worker->rows;
    int bytes = worker->size_px * 3;
    size_t stride = (size_t)bytes + SLACK;
    int kept = rows->taps_max + 2; /* rows in the ring: more than any place needs */
    size_t line = (size_t)columns * 4 + SLACK;
    uint8_t *lines[2] = {worker->lines, worker->lines + line};
    if (!grow((void **)&worker->ring, &worker->ring_room, stride * (size_t)kept))
        return 0;
    if (!grow((void **)&worker->taps, &worker->taps_room, (size_t)rows->taps_max * sizeof *worker->taps))
        return 0;
    int next = rows->low; /* the row that is decoded next */
    for (int place = 0; place < rows->places; place++) {
        int first = rows->first[place], n = rows->taps[place];
        while (next < first + n && next < rows->high) {
            uint8_t *shrunk[2] = {worker->ring + stride * (size_t)(next % kept),
                                  worker->ring + stride * (size_t)((next + 1) % kept)};
            int wanted = rows->high - next < 2 ? 1 : 2;
            for (int got = 0; got < wanted;) {
                int some = (int)jpeg_read_scanlines(jpeg, lines + got, (JDIMENSION)(wanted - got));
                if (some < 1)
                    return 0;
                got += some;
            }
            shrink_rows(&worker->columns, lines, column, shrunk); /* where only one is wanted, the other is any */
            next += wanted;
        }
        for (int tap = 0; tap < n; tap++) {
            int row = first + tap < rows->high ? first + tap : rows->high - 1; /* the even one's weight is 0 */
            worker->taps[tap] = worker->ring + stride * (size_t)(row % kept);
        }
        blend_rows(worker->taps, rows->weights + (size_t)place * (size_t)rows->taps_max, n, out, bytes);
        out += bytes;
    }
    return 1;
}

/* One image into one slot. `size` and `box` are of the upright picture, as the index has them. */
static int decode_one(Worker *worker, const uint8_t *data, size_t length, const int64_t size[2], const double box[4],
                      int flip, uint8_t *out)
{
    struct jpeg_decompress_struct *jpeg = &worker->jpeg;
    volatile int outcome = ASK_PILLOW;
    worker->errors.ended_early = 0;
    if (length < 4 || data[0] != 0xff || data[1] != 0xd8)
        return ASK_PILLOW;
    if (setjmp(worker->errors.out)) {
        jpeg_destroy_decompress(jpeg);
        return ASK_PILLOW;
    }
    /* Anew for each image: a decompressor remembers tables, and a file that lacks some would take its neighbour's. */
    jpeg_create_decompress(jpeg);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_mem_src(jpeg, data, (unsigned long)length);
    if (jpeg_read_header(jpeg, TRUE) != JPEG_HEADER_OK)
        goto done;
    if ((int64_t)jpeg->image_width != size[0] || (int64_t)jpeg->image_height != size[1] || may_be_turned(jpeg))
        goto done;
    if (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_GRAYSCALE &&
        jpeg->jpeg_color_space != JCS_RGB)
        goto done;
    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)scale_for((double)size[0], (double)size[1], box[2] - box[0], box[3] - box[1],
                                            worker->size_px);
    jpeg_start_decompress(jpeg);
    int width = (int)jpeg->output_width, height = (int)jpeg->output_height;
    double x_scale = (double)width / (double)size[0], y_scale = (double)height / (double)size[1];
    if (!filter_set(&worker->columns, width, box[0] * x_scale, fmin(box[2] * x_scale, width), flip) ||
        !filter_set(&worker->rows, height, box[1] * y_scale, fmin(box[3] * y_scale, height), 0))
        goto done;
    /* A block more on each side, for the smooth upsampling of colour looks at neighbours. */
    int block = jpeg->max_h_samp_factor * DCTSIZE;
    JDIMENSION column = (JDIMENSION)clamp(worker->columns.low - block, 0, width - 1);
    JDIMENSION columns = (JDIMENSION)clamp(worker->columns.high + block, 1, width) - column;
    if (columns < (JDIMENSION)width)
        jpeg_crop_scanline(jpeg, &column, &columns);
    if (!grow((void **)&worker->lines, &worker->lines_room, 2 * ((size_t)columns * 4 + SLACK)))
        goto done;
    if (worker->rows.low > 0)
        jpeg_skip_scanlines(jpeg, (JDIMENSION)worker->rows.low);
    if (resize_rows(worker, (int)column, (int)columns, out))
        outcome = DECODED;
done:
    jpeg_destroy_decompress(jpeg);
    return outcome;
}

/* -- Python ---------------------------------------------------------------------------------------------------------- */

static int as_array(PyObject *object, Py_buffer *view, Py_ssize_t bytes, int writable, const char *name)
{
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE))
        return 0;
    if (view->len == bytes)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes, expected %zd", name, view->len, bytes);
    PyBuffer_Release(view);
    return 0;
}

PyDoc_STRVAR(decode_doc,
             "decode(data, sizes, boxes, flips, out, outcomes, size_px)\n\n"
             "Decode, crop and resize n JPEG files.\n\n"
             "data: sequence of n buffers, or None where there is nothing to do.\n"
             "sizes: (n, 2) int64, width and height of the pictures. boxes: (n, 4) float64. flips: (n,) bool.\n"
             "out: (n, size_px, size_px, 3) uint8, written; a slot that is not decoded may hold anything.\n"
             "outcomes: (n,) uint8, written: 0 decoded, 1 not: ask Pillow. Where data is None it is left alone.\n"
             "The GIL is free for the whole of it. Raises ValueError for arrays of a wrong size.");

static PyObject *decode(PyObject *module, PyObject *args)
{
    PyObject *data, *objects[5];
    static const char *const names[5] = {"sizes", "boxes", "flips", "out", "outcomes"};
    Py_buffer views[5], *files = NULL;
    int size_px, opened = 0;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOOi:decode", &data, &objects[0], &objects[1], &objects[2], &objects[3],
                          &objects[4], &size_px))
        return NULL;
    Py_ssize_t n = PySequence_Size(data);
    if (n < 0)
        return NULL;
    if (size_px < 1 || size_px > 16384) {
        PyErr_Format(PyExc_ValueError, "size_px must be from 1 to 16384, got %d", size_px);
        return NULL;
    }
    Py_ssize_t slot = (Py_ssize_t)size_px * size_px * 3;
    const Py_ssize_t bytes[5] = {n * 16, n * 32, n, n * slot, n};
    for (; opened < 5; opened++)
        if (!as_array(objects[opened], &views[opened], bytes[opened], opened >= 3, names[opened]))
            goto done;
    files = calloc((size_t)n + 1, sizeof *files);
    if (!files) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *file = PySequence_GetItem(data, i); /* the sequence keeps it alive, and so does the view */
        int failed = !file || (file != Py_None && PyObject_GetBuffer(file, &files[i], PyBUF_SIMPLE));
        Py_XDECREF(file);
        if (failed)
            goto done;
    }
    Worker *worker = malloc(sizeof *worker);
    int ready = 0;
    Py_BEGIN_ALLOW_THREADS
    if (worker && (ready = worker_init(worker, size_px))) {
        const int64_t *sizes = views[0].buf;
        const double *boxes = views[1].buf;
        const uint8_t *flips = views[2].buf;
        uint8_t *out = views[3].buf, *outcomes = views[4].buf;
        for (Py_ssize_t i = 0; i < n; i++)
            if (files[i].obj)
                outcomes[i] = (uint8_t)decode_one(worker, files[i].buf, (size_t)files[i].len, sizes + 2 * i,
                                                  boxes + 4 * i, flips[i], out + i * slot);
    }
    if (worker)
        worker_free(worker);
    free(worker);
    Py_END_ALLOW_THREADS
    if (ready)
        result = Py_NewRef(Py_None);
    else
        PyErr_NoMemory();
done:
    for (Py_ssize_t i = 0; files && i < n; i++)
        if (files[i].obj)
            PyBuffer_Release(&files[i]);
    free(files);
    while (opened--)
        PyBuffer_Release(&views[opened]);
    return result;
}

PyDoc_STRVAR(use_vectors_doc, "use_vectors(on)\n\nFor tests: take the vector path, where the processor has it, or the plain C one; "
                              "returns which it will be.");

static PyObject *use_vectors(PyObject *module, PyObject *on)
{
    int wanted = PyObject_IsTrue(on);
    (void)module;
    if (wanted < 0)
        return NULL;
    use_avx2 = wanted && has_avx2();
    return PyBool_FromLong(use_avx2);
}

static PyMethodDef methods[] = {{"decode", decode, METH_VARARGS, decode_doc},
                                {"use_vectors", use_vectors, METH_O, use_vectors_doc},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_turbo", "Kernel of the turbo engine over libjpeg-turbo.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__turbo(void)
{
    use_avx2 = has_avx2();
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "libjpeg_turbo", LIBJPEG_TURBO_VERSION_NUMBER))
        Py_CLEAR(module);
    return module;
}
