// Which positions of a block are active, and where they and their neighbours lie.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace sact {

using Index = std::vector<int32_t>;

constexpr int kMaxReach = 15; // how far a unit's first convolution may read around an active position

// Positions of a batch of pictures, with `margin` cells around each picture that stand for zeros.
struct Grid {
    int n = 0, height = 0, width = 0, margin = 0;

    int area() const { return height * width; }
    int positions() const { return n * area(); }
    int pitch() const { return width + 2 * margin; }
    // One line more than there is: a tile at the end of an odd picture reads beyond its margin.
    int cells() const { return (n * (height + 2 * margin) + 1) * pitch() + 1; }
    int cell(int image, int y, int x) const {
        return (image * (height + 2 * margin) + y + margin) * pitch() + x + margin;
    }
    bool operator==(const Grid &other) const {
        return n == other.n && height == other.height && width == other.width && margin == other.margin;
    }
};

// Tiles of 2x2 positions that hold one of a list of rows: the cell of each one's first position, and for its four
// positions their places in the list, -1 where they are not in it.
struct Tiles {
    Index cells, outputs;

    int64_t bytes() const { return int64_t(cells.capacity() + outputs.capacity()) * 4; }
};

// Every position of a grid as a row (its number) and a cell, and the way back: rows of cells, positions() for zeros.
struct Layout {
    explicit Layout(const Grid &grid)
        : grid(grid), rows(grid.positions()), cells(grid.positions()), inner(grid.positions()),
          corners(grid.positions()) {
        map.assign(grid.cells(), grid.positions());
        int row = 0;
        const int across = (grid.width + 1) / 2, down = (grid.height + 1) / 2;
        for (int image = 0; image < grid.n; image++)
            for (int y = 0; y < grid.height; y++)
                for (int x = 0; x < grid.width; x++, row++) {
                    const int cell = grid.cell(image, y, x);
                    rows[row] = row;
                    cells[row] = cell;
                    map[cell] = row;
                    inner[row] = y > 0 && x > 0 && y + 1 < grid.height && x + 1 < grid.width;
                    corners[row] = 4 * ((image * down + y / 2) * across + x / 2) + y % 2 * 2 + x % 2;
                }
        Index seen;
        tile(rows, &tiles, seen);
    }
    // The tiles of listed rows; `seen` is working memory.
    void tile(const Index &listed, Tiles *to, Index &seen) const {
        seen.assign(size_t(grid.n) * ((grid.height + 1) / 2) * ((grid.width + 1) / 2), -1);
        to->cells.clear();
        to->outputs.clear();
        for (size_t m = 0; m < listed.size(); m++) {
            const int32_t corner = corners[listed[m]];
            int32_t &place = seen[corner / 4];
            if (place < 0) {
                place = int32_t(to->cells.size());
                to->cells.push_back(cells[listed[m]] - corner / 2 % 2 * grid.pitch() - corner % 2);
                to->outputs.insert(to->outputs.end(), 4, -1);
            }
            to->outputs[4 * size_t(place) + corner % 4] = int32_t(m);
        }
    }
    int64_t bytes() const {
        return int64_t(rows.capacity() + cells.capacity() + map.capacity() + corners.capacity()) * 4 +
               int64_t(inner.capacity()) + tiles.bytes();
    }

    Grid grid;
    Index rows, cells, map;
    std::vector<uint8_t> inner; // whether all eight neighbours of a row are inside the picture
    Index corners; // of each row: its tile's number times 4, and which of the tile's positions it is
    Tiles tiles;   // all of them
};

// Layouts by grid, kept from run to run while the images stay of one size.
class Layouts {
  public:
    const Layout &of(const Grid &grid) {
        for (const auto &layout : kept_)
            if (layout->grid == grid) return *layout;
        kept_.push_back(std::make_unique<Layout>(grid));
        return *kept_.back();
    }
    // Before a run on these images.
    void start(const Grid &images) {
        if (!(images == images_)) kept_.clear();
        images_ = images;
    }
    int64_t bytes() const {
        int64_t total = 0;
        for (const auto &layout : kept_) total += layout->bytes();
        return total;
    }

  private:
    Grid images_;
    std::vector<std::unique_ptr<Layout>> kept_;
};

// Active positions, and those within some reach of one: each as rows (numbers of positions, ascending), as cells of the
// grid, and as a map from every cell to its place among the rows, or to the row behind the last where it has none.
class Sites {
  public:
    // Everything in the layout is active.
    void start(const Layout &layout) {
        all_ = &layout;
        active_ = layout.rows;
        changed();
    }

    const Index &active() const { return active_; }
    const Layout &all() const { return *all_; }

    // Only the marked ones of the active positions go on.
    void keep(const std::vector<uint8_t> &marks) {
        size_t kept = 0;
        for (size_t m = 0; m < active_.size(); m++)
            if (marks[m]) active_[kept++] = active_[m];
        if (kept == active_.size()) return;
        active_.resize(kept);
        changed();
    }

    const Index &rows(int reach) {
        if (reach == 0) return active_;
        return everything() ? all_->rows : listed(reach).rows;
    }
    const Index &cells(int reach) { return everything() ? all_->cells : listed(reach).cells; }
    const Index &map(int reach) {
        if (everything()) return all_->map;
        Place &place = listed(reach);
        if (!place.mapped) {
            const Index &at = rows(reach);
            place.map.assign(all_->grid.cells(), int32_t(at.size()));
            for (size_t i = 0; i < at.size(); i++) place.map[place.cells[i]] = int32_t(i);
            place.mapped = true;
        }
        return place.map;
    }
    const Tiles &tiles(int reach) {
        if (everything()) return all_->tiles;
        Place &place = listed(reach);
        if (!place.tiled) all_->tile(rows(reach), &place.tiles, seen_);
        place.tiled = true;
        return place.tiles;
    }
    int64_t bytes() const {
        size_t total = active_.capacity() + seen_.capacity() + found_.capacity();
        for (const Place &place : places_)
            total += place.rows.capacity() + place.cells.capacity() + place.map.capacity() + place.tiles.bytes() / 4;
        return int64_t(total * sizeof(int32_t) + near_.capacity() + wide_.capacity());
    }

  private:
    struct Place {
        Index rows, cells, map;
        Tiles tiles;
        bool current = false, mapped = false, tiled = false;
    };

    bool everything() const { return int(active_.size()) == all_->grid.positions(); }

    void changed() {
        for (Place &place : places_) place.current = place.mapped = place.tiled = false;
    }

    Place &listed(int reach) {
        Place &place = places_[reach];
        if (place.current) return place;
        if (reach) dilate(listed(reach - 1).cells, place);
        const Index &at = rows_of(reach);
        place.cells.resize(at.size());
        for (size_t m = 0; m < at.size(); m++) place.cells[m] = all_->cells[at[m]];
        place.current = true;
        return place;
    }
    const Index &rows_of(int reach) const { return reach ? places_[reach].rows : active_; }

    // List the positions in a cell of `from` or beside one.
    void dilate(const Index &from, Place &to) {
        const Grid &grid = all_->grid;
        const int pitch = grid.pitch();
        near_.assign(grid.cells(), 0);
        wide_.assign(grid.cells(), 0);
        for (int32_t cell : from) near_[cell] = 1;
        for (size_t i = 1; i + 1 < near_.size(); i++) wide_[i] = near_[i - 1] | near_[i] | near_[i + 1];
        found_.resize(grid.positions());
        size_t count = 0;
        for (int image = 0, row = 0; image < grid.n; image++)
            for (int y = 0; y < grid.height; y++) {
                const uint8_t *line = &wide_[grid.cell(image, y, 0)];
                for (int x = 0; x < grid.width; x++, row++) {
                    found_[count] = row; // overwritten unless it counts: no branch to mispredict
                    count += line[x - pitch] | line[x] | line[x + pitch];
                }
            }
        to.rows.assign(found_.begin(), found_.begin() + count);
    }

    const Layout *all_ = nullptr;
    Index active_, seen_, found_;
    std::array<Place, kMaxReach + 1> places_; // by reach
    std::vector<uint8_t> near_, wide_;
};

} // namespace sact
